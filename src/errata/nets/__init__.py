"""What trained editors share: gradient factors, normalisers and blocks of hypernetworks."""
