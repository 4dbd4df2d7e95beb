"""The graphs of CPU, memory, disk and network move with what happens inside, up and down."""

import re
import time

from desk import console, environment, page, shot, typed, until

CPU = r"(\d+) %"
MEMORY = r" *(\d+) MiB of 256 MiB"
DISK = r"(\d+) KiB/s read (\d+) KiB/s write"
NETWORK = r"(\d+) KiB/s in (\d+) KiB/s out"

win = environment("web1")


def shown(value):
    """The greatest number of a graph's label."""
    for label in win.all(value, "label"):
        return max(int(number) for number in re.fullmatch(value, label.text).groups())


def moves(name, value, wanted):
    """Wait until the number is what is wanted, and return it."""
    def look():
        number = shown(value)
        return number is not None and wanted(number) and (number,)
    number, = until(f"{name} to move from {shown(value)}", look)
    print(name, number)
    return number


page(win, "Performance")
quiet = moves("CPU usage", CPU, lambda now: now < 20)
memory = moves("memory usage", MEMORY, lambda now: now > 0)

console(win)
typed("ip addr add 192.168.122.77/24 dev eth0\n")
typed("while :; do head -c 20M /dev/zero >/root/noise; "
      "for n in 1 2 3 4 5 6 7 8 9; do head -c 8K /dev/zero >/dev/udp/192.168.122.1/9; done; done 2>/dev/null &\n")
typed("(head -c 40M /dev/zero; exec sleep 9999) | tail -c 40M >/dev/null &\n")  # which tail keeps until the end
page(win, "Performance")
busy = moves("CPU usage", CPU, lambda now: now >= quiet + 20)
full = moves("memory usage", MEMORY, lambda now: now >= memory + 35)
moves("disk I/O", DISK, lambda now: now > 0)
moves("network I/O", NETWORK, lambda now: now > 0)
time.sleep(20)  # for the picture alone
shot("performance", win)

console(win)
typed("kill %1 %2; rm /root/noise; echo of web1 >/root/mark\n")
page(win, "Performance")
moves("CPU usage", CPU, lambda now: now < busy - 15)
moves("memory usage", MEMORY, lambda now: now <= full - 35)
moves("disk I/O", DISK, lambda now: now == 0)
moves("network I/O", NETWORK, lambda now: now == 0)
