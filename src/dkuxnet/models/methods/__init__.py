"""Semi-supervised methods by name.

Each entry is a `Method` class; to add one: its file and its line here.
"""

METHODS = {
    "supervised": "dkuxnet.models.methods.supervised:Supervised",
    "mean-teacher": "dkuxnet.models.methods.mean_teacher:MeanTeacher",
    "ua-mt": "dkuxnet.models.methods.ua_mt:UAMT",
    "cps": "dkuxnet.models.methods.cps:CPS",
    "mc-net-plus": "dkuxnet.models.methods.mc_net:MCNetPlus",
    "bcp": "dkuxnet.models.methods.bcp:BCP",
    "fixmatch": "dkuxnet.models.methods.fixmatch:FixMatch",
    "unimatch": "dkuxnet.models.methods.unimatch:UniMatch",
    "ad-mt": "dkuxnet.models.methods.ad_mt:ADMT",
    "crossmatch": "dkuxnet.models.methods.crossmatch:CrossMatch",
    "dtc": "dkuxnet.models.methods.dtc:DTC",
    "dual-mutual": "dkuxnet.models.methods.dual_mutual:DualMutual",
}
