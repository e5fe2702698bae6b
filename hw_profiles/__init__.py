"""What is the chip? What devices were measured to do, and how these files are read and written."""
