"""Work on files of weights, tensor by tensor and without making a model.

    from hcpdiff.tools.merge import merge           # other models and adapters into a model
    from hcpdiff.tools.extract import extract       # the difference of two models as a LoRA
    from hcpdiff.tools.resize import resize         # a LoRA of a smaller rank
    from hcpdiff.tools.inspect import inspect       # what a file holds

`model_files` finds the tensors of a model in its folder or its single file, under the names that they have in a family;
so the tools know layers by the names that configs use, and files of either layout go together.
"""
