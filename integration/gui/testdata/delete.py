"""Delete, which ends an environment that runs, and its definition."""

from desk import desk, domain, environment, manager, until, window


def deleted(name):
    """Nothing more is asked, for there is no disk to be deleted along."""
    question = desk().there(role="alert")
    assert not question, [label.text for label in question.all(role="label")]
    return not domain(name)


for name in "shop", "web2":
    environment(name).menu("Virtual Machine", "Delete")
    dialog = window("Delete.*")
    dialog.find("Delete", "button").click()
    until(f"{name} to be deleted", lambda: deleted(name))
    manager().gone(f"{name}\n.*", "table cell")
