"""What is trained: networks and methods, and how they are built."""
