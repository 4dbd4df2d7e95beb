"""The graphs of CPU, memory, disk and network move with what happens inside."""

import re
import time

from desk import console, environment, page, shot, typed, until

win = environment("web1")
console(win)
typed("ip addr add 192.168.122.77/24 dev eth0\n")
typed("while :; do head -c 20M /dev/zero >/root/noise; head -c 40M /dev/zero | tail >/dev/null; "
      "for n in 1 2 3 4 5 6 7 8 9; do head -c 8K /dev/zero >/dev/udp/192.168.122.1/9; done; done 2>/dev/null &\n")
page(win, "Performance")


def moves(name, value):
    """The label of a graph, of which a number in parentheses is over 0."""
    def look():
        for label in win.all(value, "label"):
            if any(int(number) for number in re.fullmatch(value, label.text).groups()):
                return label.text
    print(until(f"a {name} over 0", look))


moves("CPU usage", r"(\d+) %")
moves("memory usage", r" *(\d+) MiB of 256 MiB")
moves("disk I/O", r"(\d+) KiB/s read (\d+) KiB/s write")
moves("network I/O", r"(\d+) KiB/s in (\d+) KiB/s out")
time.sleep(20)  # for the picture alone
shot("performance", win)
console(win)
typed("kill %1; rm /root/noise\n")
