"""What makes and keeps a box: the offline file, its installation, the units."""
