"""Semi-supervised methods by name. Each entry is a `Method` class; to add one: its file and its line here."""

METHODS = {
    "supervised": "dkuxnet.methods.supervised:Supervised",
    "dual-mutual": "dkuxnet.methods.dual_mutual:DualMutual",
}
