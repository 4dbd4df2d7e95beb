from desk import *
w=environment("web1")
page(w, "Overview")
t=[n for n in w.all("XML", "page tab")]
print(t)
w.dump()
d=window("Delete.*") if 0 else None
