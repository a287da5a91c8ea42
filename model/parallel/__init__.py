"""How a model is cut over devices: sharding rules, the stack of layers, pipeline, remat."""
