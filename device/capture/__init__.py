"""Where pictures come from: clips, the phantom, and grabbers in processes of their own."""
