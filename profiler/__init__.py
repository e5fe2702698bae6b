"""What does a block cost? Measuring, the cost model, and measured engines."""
