"""What others call the numbers and tensors of our models: a file for each class of model."""

import own_imports
