"""Virtual Machine > Migrate..., to another host, as the dialog proposes."""

from desk import daemon, desk, domain, environment, manager, shot, until, window

OTHER = "vz+unix:///system?socket=/run/libvirt/virtvzd-b-sock"

manager().menu("File", "Add Connection...")
dialog = desk().find("Add Connection", "dialog")
dialog.find("Hypervisor Select", "combo box").choose("Custom URI.*")
dialog.find("uri-entry", "text").write(OTHER)
dialog.find("Connect", "button").click()
desk().gone("Add Connection", "dialog")

daemon().defineXML("""<domain type='vz'><name>mover</name><memory unit='MiB'>64</memory><devices>
<filesystem type='template'><source name='busybox'/><target dir='/'/></filesystem></devices></domain>""").create()
uuid = domain("mover").UUIDString()
win = environment("mover")
win.menu("Virtual Machine", "Migrate.*")
dialog = window("Migrate the virtual machine")
until("the other host's name", lambda: dialog.find("address-text", "text").text == "b")
shot("migrate", dialog)
dialog.find("Migrate", "button").click()
until("mover to be gone", lambda: not domain("mover"))
desk().gone("Migrate the virtual machine", "frame")
there = daemon(OTHER).lookupByName("mover")
assert there.isActive() and there.isPersistent() and there.UUIDString() == uuid
manager().find("mover\nRunning", "table cell")
there.destroy()
there.undefine()
manager().gone("mover\n.*", "table cell")
