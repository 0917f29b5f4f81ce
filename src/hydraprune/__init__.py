"""hydraprune: small networks that stay robust."""
