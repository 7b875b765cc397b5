"""dkuxnet: a few labelled 3D scans and many unlabelled ones become a segmentation model that people can trust."""
