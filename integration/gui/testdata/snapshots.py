"""The snapshots page: a snapshot of the disk is made, gone back to, and deleted."""

from desk import answer, desk, domain, environment, shot, state, until, window

win = environment("web1")
state("web1", "shutoff")
win.find("Snapshots", "radio button").click()


def names():
    return sorted(domain("web1").snapshotListNames())


for name in "clean", "upgraded":
    win.find("snapshot-add", "button").click()
    dialog = window("Create snapshot")
    dialog.find("Name:", "text").write(name)
    dialog.find("Finish", "button").click()
    desk().gone("Create snapshot", "dialog|frame")
    win.find(f"{name}.*", "table cell")
assert names() == ["clean", "upgraded"], names()

win.find("clean.*", "table cell").click()
win.find("snapshot-start", "button").click()
answer("Are you sure you want to run the snapshot", "Yes")
until("clean to be the current one", lambda: domain("web1").snapshotCurrent().getName() == "clean")
shot("snapshots", win)

for name in "upgraded", "clean":
    win.find(f"{name}.*", "table cell").click()
    win.find("snapshot-delete", "button").click()
    answer("Are you sure", "Yes")
    win.gone(f"{name}.*", "table cell")
assert names() == [], names()
