"""Memory and CPUs of a running environment, changed on their pages."""

import libvirt

from desk import apply, environment, page, shot, state, until

win = environment("web1")
domain = state("web1", "running")

page(win, "Memory")
win.find("Memory Select", "spin button").write("128")
apply(win)
until("128 MiB", lambda: domain.info()[2] == 128 << 10)
win.find("Max Memory Select", "spin button").write("512")
win.find("Memory Select", "spin button").write("384")
apply(win)
until("384 of 512 MiB", lambda: domain.info()[1:3] == [512 << 10, 384 << 10])
shot("memory", win)

# virt-manager changes CPUs in the definition alone, and says so.
page(win, "CPUs")
win.find("Virtual CPU Select", "spin button").write("2")
apply(win, "after the next guest shutdown")

definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
for element in "<memory unit='KiB'>524288<", "<currentMemory unit='KiB'>393216<", ">2</vcpu>":
    assert element in definition, definition
