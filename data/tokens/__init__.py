"""From documents to rows of tokens: encoding, shards, packing, mixtures."""
