"""Boot Options: start with the host."""

from desk import apply, environment, page, state

win = environment("web1")
page(win, "Boot Options")
domain = state("web1", "running")
for wanted in 1, 0:
    win.find("Start virtual machine on host.*", "check box").click()
    # virt-manager applies the whole page, of which the rest is not changed live.
    apply(win, "after the next guest shutdown")
    assert domain.autostart() == wanted
