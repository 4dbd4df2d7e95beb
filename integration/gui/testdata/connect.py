"""File > Add Connection, Virtuozzo: that is vz:///system."""

from desk import desk, manager

manager().menu("File", "Add Connection...")
dialog = desk().find("Add Connection", "dialog")
dialog.find("Hypervisor Select", "combo box").choose("Virtuozzo")
assert dialog.find("uri-label").text == "vz:///system", dialog.find("uri-label").text
dialog.find("Connect", "button").click()
desk().gone("Add Connection", "dialog")
manager().find("vz", "table cell")
