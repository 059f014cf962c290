"""Files of tensors: read straight to where and how they are wanted, written without a second copy in memory.

A safetensors file is the length of its header in eight bytes, the header as JSON, and the tensors' bytes one after the
other (https://huggingface.co/docs/safetensors).
"""
