"""A desktop with virt-manager on it: an X server without a screen, a window
manager, virt-manager. Runs the scripts whose names come on standard input, one
a line, and answers each with a line of JSON on descriptor 3. Started by
dbus-run-session."""

import json
import os
import subprocess
import sys
import time

os.environ.update(
    DISPLAY=":0",
    GDK_BACKEND="x11",
    GSETTINGS_BACKEND="keyfile",
    GTK_MODULES="gail:atk-bridge",
    NO_AT_BRIDGE="0",
    XDG_RUNTIME_DIR="/run/user",
    LIBGL_ALWAYS_SOFTWARE="1",
)
OUT = "/mnt"

from gi.repository import Gio  # noqa: E402, it reads the environment


def start(log, *command):
    return subprocess.Popen(command, stdin=subprocess.DEVNULL,
                            stdout=open(f"{OUT}/{log}.log", "w"), stderr=subprocess.STDOUT)


def configure():
    """What a user ticks in the preferences before anything else: all graphs, and
    the XML editor. The rest are the defaults."""
    def tick(schema, *keys):
        settings = Gio.Settings.new("org.virt-manager.virt-manager" + schema)
        for key in keys:
            settings.set_boolean(key, True)

    tick(".stats", "enable-memory-poll", "enable-disk-poll", "enable-net-poll")
    tick(".vmlist-fields", "cpu-usage", "memory-usage", "disk-usage", "network-traffic")
    tick("", "xmleditor-enabled")
    Gio.Settings.sync()


def python(*command):
    run = subprocess.run([sys.executable, "-B", *command], stdin=subprocess.DEVNULL, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return run.returncode == 0, run.stdout


def main():
    os.makedirs(os.environ["XDG_RUNTIME_DIR"], mode=0o700, exist_ok=True)
    start("xvfb", "Xvfb", ":0", "-screen", "0", "1024x768x24", "-nolisten", "tcp", "-noreset")
    while not os.path.exists("/tmp/.X11-unix/X0"):
        time.sleep(0.05)
    configure()
    start("metacity", "metacity", "--no-composite")
    start("virt-manager", "virt-manager", "--no-fork", "--debug")
    answers = open(3, "w")
    for line in sys.stdin:
        name = line.strip()
        begun = time.time()
        ok, output = python(f"/srv/{name}.py")
        if not ok:
            output += python("/srv/failed.py", name)[1]
        print(json.dumps({"ok": ok, "seconds": time.time() - begun, "output": output}),
              file=answers, flush=True)


main()
