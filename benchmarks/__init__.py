"""What QKVShare is measured by and against; a package of its own, which no user of cards needs."""
