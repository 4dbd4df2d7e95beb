"""What a user does at the screen: find what is shown, click it, type, look.
And what is asked of the daemon besides, to see what really happened."""

import re
import subprocess
import time

import gi
gi.require_version("Atspi", "2.0")
from gi.repository import Atspi  # noqa: E402
import libvirt  # noqa: E402

URI = "vz:///system"
PATIENCE = 240  # seconds: the daemon is on an emulated machine, which may be busy


def until(what, condition):
    """Wait for a condition and return what it returned."""
    end = time.time() + PATIENCE
    while True:
        try:
            found = condition()
        except gi.repository.GLib.Error:  # gone while it was looked at
            found = None
        if found:
            return found
        if time.time() > end:
            raise AssertionError(f"waited {PATIENCE} s in vain for {what}")
        time.sleep(0.1)


class Node:
    """Something on the screen, as AT-SPI tells of it."""

    def __init__(self, accessible):
        self.it = accessible

    @property
    def name(self):
        return self.it.get_name() or self.label

    @property
    def label(self):
        for relation in self.it.get_relation_set():
            if relation.get_relation_type() == Atspi.RelationType.LABELLED_BY:
                return relation.get_target(0).get_name()
        return ""

    @property
    def role(self):
        return self.it.get_role_name()

    def has(self, state):
        return self.it.get_state_set().contains(state)

    @property
    def sensitive(self):
        return self.has(Atspi.StateType.SENSITIVE)

    @property
    def showing(self):
        return self.has(Atspi.StateType.SHOWING)

    @property
    def checked(self):
        return self.has(Atspi.StateType.CHECKED)

    @property
    def text(self):
        if self.it.get_text_iface():
            return Atspi.Text.get_text(self.it, 0, -1)
        return self.name

    def called(self, name):
        """Whether its name, or what a label says, matches."""
        return re.fullmatch(name, self.name, re.S) or self.role == "label" and re.fullmatch(name, self.text, re.S)

    def children(self):
        for n in range(self.it.get_child_count()):
            child = self.it.get_child_at_index(n)
            if child:
                yield Node(child)

    def all(self, name=".*", role=".*"):
        """Everything shown below this whose name and role match, in order."""
        for child in self.children():
            try:
                # Only what is shown itself can show something below.
                if not child.showing and child.role not in ("table row", "table cell", "menu", "page tab"):
                    continue
                if re.fullmatch(role, child.role) and child.showing and child.called(name):
                    yield child
                yield from child.all(name, role)
            except gi.repository.GLib.Error:
                continue

    def there(self, name=".*", role=".*"):
        """The first of them, or None."""
        return next(self.all(name, role), None)

    def find(self, name=".*", role=".*"):
        """The first of them, as soon as there is one."""
        return until(f"{role} {name!r} in {self.role} {self.name!r}", lambda: self.there(name, role))

    def gone(self, name=".*", role=".*"):
        """Wait until there is none."""
        until(f"{role} {name!r} to go away", lambda: not self.there(name, role))

    def place(self):
        box = self.it.get_component_iface().get_extents(Atspi.CoordType.SCREEN)
        return box.x, box.y, box.width, box.height

    def come_up(self):
        """Put its window above the others."""
        top = self
        while top.role not in ("frame", "dialog", "alert", "window", "application"):
            top = Node(top.it.get_parent())
        if top.role in ("frame", "dialog") and not top.has(Atspi.StateType.ACTIVE):
            xdotool("search", "--onlyvisible", "--name", f"^{re.escape(top.name)}$", "windowactivate", "--sync")

    def click(self, button=1, times=1, left=None):
        """Press a button of the mouse on it, when it is where it stays: in its
        middle, or so many pixels from its left."""
        until(f"{self.role} {self.name!r} to be sensitive", lambda: self.sensitive)
        self.come_up()
        Atspi.Component.scroll_to(self.it, Atspi.ScrollType.ANYWHERE)
        place = None
        while place != self.place():
            place = self.place()
            time.sleep(0.1)
        x, y, width, height = place
        xdotool("mousemove", x + (left or width // 2), y + height // 2, "click", "--repeat", times, button)
        return self

    def write(self, text):
        """Replace what an entry holds, by typing. Spin buttons have buttons to the right."""
        self.click(left=20)
        key("ctrl+a")
        typed(text)
        until(f"{self.role} to hold {text!r}, not {self.text!r}", lambda: self.text == text)
        key("Tab")
        return self

    def choose(self, item):
        """Take an item of a combo box."""
        self.click().find(item, "menu item|table cell").click()
        return self

    def menu(self, *titles):
        """Go through the menus of a window."""
        self.find(titles[0], "menu").click()
        for title in titles[1:]:
            desk().find(title, "menu item|menu|check menu item|radio menu item").click()

    def dump(self, depth=0):
        """Print everything that is shown, for whoever looks for a name or a reason."""
        for child in self.children():
            if child.showing:
                print("  " * depth + child.role, repr(child.name), repr(child.text[:200]),
                      "" if child.sensitive else "insensitive")
            child.dump(depth + 1)


def xdotool(*words):
    """Mouse and keyboard, as X itself has them from their devices."""
    subprocess.check_call(["xdotool", *map(str, words)])
    time.sleep(0.2)


def key(*names):
    """Press keys, like Return or ctrl+a."""
    xdotool("key", *names)


def typed(text):
    """Type on whatever has the focus."""
    xdotool("type", "--delay", 20, text)


def desk():
    """virt-manager, with all of its windows."""
    def app():
        return next((n for n in Node(Atspi.get_desktop(0)).children() if n.name == "virt-manager"), None)
    return until("virt-manager to run", app)


def window(title):
    """The window with that title, as soon as it is open."""
    return until(f"the window {title!r}",
                 lambda: next((w for w in desk().children() if w.showing and re.fullmatch(title, w.name)), None))


def manager():
    return window("Virtual Machine Manager")


def environment(name):
    """The window of an environment, opened from the list if it is not open."""
    def open_one():
        return next((w for w in desk().children() if w.showing and w.name.startswith(f"{name} on ")), None)
    if not open_one():
        manager().find(rf"{name}\n.*", "table cell").click(times=2)
    return until(f"the window of {name}", open_one)


def page(win, name):
    """A page of the details of an environment's window."""
    toggle = win.find("Details", "radio button")
    if not toggle.checked:
        toggle.click()
    win.find("hw-list", "table").find(name, "table cell").click()
    return win


def apply(win, message=None):
    """Press Apply, and see that it was taken, without a message or with this one."""
    win.find("config-apply", "button").click()
    if message:
        answer(message, "OK")
    until("Apply to be done", lambda: not win.find("config-apply", "button").sensitive)
    assert not desk().there(role="alert")


def answer(text, button):
    """Answer a question or a message that has this text."""
    alert = desk().find(role="alert")
    alert.find(f".*{text}.*", "label")
    alert.find(button, "button").click()
    desk().gone(role="alert")


def console(win):
    """The console of an environment's window, with the keyboard on it."""
    toggle = win.find("Console", "radio button")
    if not toggle.checked:
        toggle.click()
    return win.find("Serial Terminal", "terminal").click()


def shows(terminal, text):
    until(f"{text!r} on the console, not {terminal.text!r}", lambda: text in terminal.text)


def login(terminal):
    """Get a shell on the console."""
    shows(terminal, "login:")
    typed("root\n")
    shows(terminal, "root@")


def shot(name, of=None):
    """Keep a picture of a window or of all, with a palette so that it is small."""
    xdotool("mousemove", 1, 767)  # away, and no tip is in the way
    time.sleep(0.5)
    crop = []
    if of:
        x, y, width, height = of.place()
        crop = ["-crop", f"{width}x{height}+{x}+{y}", "+repage"]
    subprocess.check_call(["import", "-window", "root", *crop, "+dither", "-colors", "64",
                           "-define", "png:compression-level=9", f"PNG8:/mnt/{name}.png"])


def daemon(uri=URI):
    """A connection of our own."""
    libvirt.registerErrorHandler(lambda *ignored: None, None)
    return libvirt.open(uri)


def domain(name):
    """The domain of that name, None when there is none."""
    try:
        return daemon().lookupByName(name)
    except libvirt.libvirtError as err:
        if err.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


def state(name, wanted):
    """Wait until a domain is in a state: running, paused, shutoff."""
    number = getattr(libvirt, f"VIR_DOMAIN_{wanted.upper()}")
    dom = until(f"the domain {name}", lambda: domain(name))
    until(f"{name} to be {wanted}, not in the state {dom.state()}", lambda: dom.state()[0] == number)
    return dom
