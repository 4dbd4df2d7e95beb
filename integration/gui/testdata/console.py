"""The console tab: a login, and a shell behind it."""

from desk import console, environment, login, shot, shows, typed

win = environment("web1")
terminal = console(win)
login(terminal)
typed("echo $((6 * 7)) is the answer\n")
shows(terminal, "42 is the answer")
typed("clear; grep PRETTY /etc/os-release; free -m; ip -br addr; ps ax | head -n 5\n")
shows(terminal, "init [2]")
shot("console", win)
