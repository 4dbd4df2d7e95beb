"""Delete, which ends an environment that runs, and its definition."""

from desk import desk, domain, environment, manager, until, window

for name in "shop", "web2":
    environment(name).menu("Virtual Machine", "Delete")
    dialog = window("Delete.*")
    dialog.find("Delete", "button").click()
    while not domain(name) is None:
        question = desk().there(role="alert")
        if question:
            question.find("Yes", "button").click()
    manager().gone(f"{name}\n.*", "table cell")
