"""Networks by name.

Each entry is a builder `(NetworkShape, options: dict) -> nn.Module` whose forward returns `Output`.

Some methods ask for more, which a network may offer:
- `has_queries = True`: its `Output` carries grouped assignments;
- `encoder(image) -> features` and `decode(image, features) -> Output`, where features are tensors
  (B, C, x, y, z): decoders can share an encoder, and features can be perturbed on their way;
- `voxel_channels` and `Output.features`: voxel features at full resolution, on which a method can
  put a head of its own.
The dk-uxnet, uxnet and vnet families offer the last two.

The edges of an image are multiples of `NetworkShape.divisor`. Only the networks in FOLLOW_STRIDES
reduce as the shape's strides say; the others are built for halvings along every axis.
"""

NETWORKS = {
    "dk-uxnet": "dkuxnet.models.networks.dkuxnet:dk_uxnet",
    "dk-uxnet-small": "dkuxnet.models.networks.dkuxnet:dk_uxnet_small",
    "dk-uxnet-tiny": "dkuxnet.models.networks.dkuxnet:dk_uxnet_tiny",
    "uxnet": "dkuxnet.models.networks.plain:uxnet",
    "uxnet-tiny": "dkuxnet.models.networks.plain:uxnet_tiny",
    "vnet": "dkuxnet.models.networks.baselines:vnet",
    "unet": "dkuxnet.models.networks.baselines:unet",
    "segresnet": "dkuxnet.models.networks.baselines:segresnet",
}
FOLLOW_STRIDES = {name for name in NETWORKS if "uxnet" in name}
