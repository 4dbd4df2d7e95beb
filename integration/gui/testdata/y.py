from desk import *
answer("Are you sure", "Yes")
win = environment("web1")
until("clean to be the current one", lambda: domain("web1").snapshotCurrent().getName() == "clean")
shot("snapshots", win)
win.find("upgraded.*", "table cell").click()
win.find("snapshot-delete", "button").click()
answer("Are you sure", "Yes")
win.gone("upgraded.*", "table cell")
