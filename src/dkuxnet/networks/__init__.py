"""Networks by name. Each entry is a builder `(NetworkShape, options: dict) -> nn.Module` whose forward returns `Output`."""

NETWORKS = {
    "dk-uxnet": "dkuxnet.networks.dkuxnet:dk_uxnet",
    "dk-uxnet-small": "dkuxnet.networks.dkuxnet:dk_uxnet_small",
    "dk-uxnet-tiny": "dkuxnet.networks.dkuxnet:dk_uxnet_tiny",
    "uxnet": "dkuxnet.networks.plain:uxnet",
    "uxnet-tiny": "dkuxnet.networks.plain:uxnet_tiny",
    "vnet": "dkuxnet.networks.baselines:vnet",
    "unet": "dkuxnet.networks.baselines:unet",
    "segresnet": "dkuxnet.networks.baselines:segresnet",
}
