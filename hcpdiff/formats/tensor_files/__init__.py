"""Files of tensors: read straight to where and how they are wanted, written without a second copy in memory."""
