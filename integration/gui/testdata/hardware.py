"""Add Hardware, and Remove, while the environment runs: an interface, a filesystem."""

import libvirt

from desk import answer, desk, environment, page, state, until, window

win = environment("web1")
domain = state("web1", "running")


def add(kind):
    page(win, "Overview")
    win.find("add-hardware", "button").click()
    dialog = window("Add New Virtual Hardware")
    dialog.find(kind, "table cell").click()
    return dialog


def finish(dialog):
    dialog.find("Finish", "button").click()
    desk().gone("Add New Virtual Hardware", "dialog|frame")


def remove(name):
    page(win, name)
    win.find("config-remove", "button").click()
    answer("Are you sure", "Yes")
    win.gone(name, "table cell")


def count(element):
    """How many of a device there are: live, and in the definition."""
    return domain.XMLDesc().count(element), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).count(element)


add_nic = add("Network")
mac = add_nic.find("MAC Address Field", "text").text
finish(add_nic)
nic = f"NIC {mac[8:]}"
win.find(nic, "table cell")
until("two interfaces", lambda: count("<interface") == (2, 2))
remove(nic)
until("one interface", lambda: count("<interface") == (1, 1))

add_fs = add("Filesystem")
add_fs.find("Source path:", "text").write("/srv/roots")
add_fs.find("Target path:", "text").write("/media")
finish(add_fs)
win.find("Filesystem /media", "table cell")
until("two filesystems", lambda: count("<filesystem") == (2, 2))
remove("Filesystem /media")
until("one filesystem", lambda: count("<filesystem") == (1, 1))
