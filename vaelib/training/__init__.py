"""Learning algorithms, their objectives, and the loop around them."""
