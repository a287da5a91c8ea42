"""What the servers have in common: errors, fields of bodies, who may ask, sockets."""
