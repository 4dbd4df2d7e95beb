"""The wizard: a container from an OS template, as it offers it, is defined and boots."""

from desk import manager, shot, state, window

manager().find("New", "button").click()
wizard = window("New VM")


def forward(step):
    wizard.find("Forward", "button").click()
    wizard.find(f"Step {step} of .*", "label")


assert wizard.find("Container", "radio button").checked
forward(2)
wizard.find("Select container template:", "text").write("debian13")
forward(3)
wizard.find("", "spin button").write("256")
wizard.find("cpus", "spin button").write("1")
forward(4)
wizard.find("Name:", "text").write("web1")
shot("wizard", wizard)
wizard.find("Finish", "button").click()
window("web1 on .*")
domain = state("web1", "running")
assert "<domain type='vz'" in domain.XMLDesc(), domain.XMLDesc()
