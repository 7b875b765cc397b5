"""Semi-supervised methods by name. Each entry is a `Method` class; to add one: its file and its line here."""

METHODS = {
    "supervised": "dkuxnet.methods.supervised:Supervised",
    "mean-teacher": "dkuxnet.methods.mean_teacher:MeanTeacher",
    "ua-mt": "dkuxnet.methods.ua_mt:UAMT",
    "cps": "dkuxnet.methods.cps:CPS",
    "mc-net-plus": "dkuxnet.methods.mc_net:MCNetPlus",
    "bcp": "dkuxnet.methods.bcp:BCP",
    "fixmatch": "dkuxnet.methods.fixmatch:FixMatch",
    "unimatch": "dkuxnet.methods.unimatch:UniMatch",
    "dtc": "dkuxnet.methods.dtc:DTC",
    "dual-mutual": "dkuxnet.methods.dual_mutual:DualMutual",
}
