"""Edit > Connection Details: the host, its networks and its storage."""

from desk import manager, shot, until, window

main = manager()
main.find("vz", "table cell").click()
main.menu("Edit", "Connection Details")
win = window("vz - Connection Details")
win.find("Overview", "page tab").click()
win.find("vz:///system", "label")
until("the host's memory", lambda: win.there(r" *\d+ MiB of \d+ MiB", "label"))
win.find("Virtual Networks", "page tab").click()
win.find("net-list", "table").find("default", "table cell").click()
win.find("192.168.122.0/24", "label")
shot("networks", win)
win.find("Storage", "page tab").click()
win.find("pool-list", "table").find(".*default.*", "table cell").click()
win.find("vol-refresh", "button").click()
until("the pool", lambda: win.there("/var/lib/libvirt/images", "label"))
win.menu("File", "Close")
