"""Delete, which ends an environment that runs, and its definition."""

from desk import desk, domain, environment, manager, until, window


def confirmed():
    """Say yes to whatever is asked."""
    question = desk().there(role="alert")
    if question:
        question.find("Yes", "button").click()
    return True


for name in "shop", "web2":
    environment(name).menu("Virtual Machine", "Delete")
    dialog = window("Delete.*")
    dialog.find("Delete", "button").click()
    until(f"{name} to be deleted", lambda: confirmed() and not domain(name))
    manager().gone(f"{name}\n.*", "table cell")
