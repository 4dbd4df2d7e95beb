"""Edit > Connection Details: the host, its networks and its storage."""

from desk import desk, manager, shot, until, window

main = manager()
main.find("vz", "table cell").click()
main.menu("Edit", "Connection Details")
win = window("vz - Connection Details")
win.dump()
shot("host", win)
win.find("Virtual Networks", "page tab").click()
win.find("default", "table cell")
win.dump()
win.find("Storage", "page tab").click()
win.find("default", "table cell")
win.dump()
