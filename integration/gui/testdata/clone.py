"""Clone: a copy with a disk of its own."""

from desk import console, desk, domain, environment, login, manager, shot, shows, state, typed, window

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

# It has what the other had, and what it changes stays its own.
terminal = console(win)
login(terminal)
typed("cat /root/mark; echo of web2 >/root/mark; sync\n")
shows(terminal, "of web1")
win = environment("web1")
win.find("Run", "button").click()
state("web1", "running")
terminal = console(win)
login(terminal)
typed("cat /root/mark\n")
shows(terminal, "of web1")
assert "of web2" not in terminal.text, terminal.text
domain("web1").destroy()
state("web1", "shutoff")
