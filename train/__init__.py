"""How is a child healed: text, blockwise local distillation, global distillation."""
