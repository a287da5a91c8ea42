"""Encoding of documents as rows of tokens: shards, packing, mixtures."""
