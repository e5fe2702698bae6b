"""How is a child shipped: one graph from spec and weights, int4, engines and their run-time session."""
