"""The buttons: pause, resume, reboot, shut down, run, force off; the list follows."""

from desk import answer, desk, domain, environment, manager, state, until

win = environment("web1")


def listed(status):
    manager().find(f"web1\n{status}", "table cell")


def shut_down(item):
    win.find("Menu", "toggle button").click()
    desk().find(item, "menu item").click()


pause = win.find("Pause", "toggle button")
pause.click()
state("web1", "paused")
listed("Paused")
until("Pause to look pressed", lambda: pause.checked)
pause.click()
state("web1", "running")
listed("Running")

before = state("web1", "running").ID()
shut_down("Reboot")
until("another init", lambda: state("web1", "running").ID() not in (before, -1))
listed("Running")

win.find("Shut Down", "button").click()
state("web1", "shutoff")
listed("Shutoff")
win.find("Run", "button").click()
state("web1", "running")
listed("Running")
assert domain("web1").vcpusFlags() == 2  # since its definition was changed
shut_down("Force Off")
answer("Are you sure", "Yes")
state("web1", "shutoff")
listed("Shutoff")
