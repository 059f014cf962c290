"""Write a model with its weights in bfloat16, as the embedded model is stored.

python scripts/pack_model.py exps/pretrain-tiny/model hcpdiff/assets/tiny-sd3
"""

from __future__ import annotations

import sys

from hcpdiff.models import SD3

if __name__ == "__main__":
    source, target = sys.argv[1:]
    SD3.from_pretrained(source, dtype="bfloat16", vae_dtype="bfloat16", t5=False).save_pretrained(target)
