"""Clone: a copy with a disk of its own."""

from desk import desk, domain, environment, manager, shot, state, window

win = environment("web1")
state("web1", "shutoff")
win.menu("Virtual Machine", "Clone...")
dialog = window("Clone Virtual Machine")
dialog.find("Name:", "text").write("web2")
dialog.find("Clone", "button").click()
desk().gone("Clone Virtual Machine", "dialog|frame")
manager().find("web2\nShutoff", "table cell")
assert domain("web2").UUIDString() != domain("web1").UUIDString()
win = environment("web2")
win.find("Run", "button").click()
state("web2", "running")
manager().find("web2\nRunning", "table cell").click()
shot("list", manager())
