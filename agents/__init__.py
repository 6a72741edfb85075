"""What chooses the teachers: the paper's REINFORCE selector, fixed rules and other algorithms. Nothing imports agents."""
