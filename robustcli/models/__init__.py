"""Networks from anywhere: a name becomes a network in three steps.

find_source   ModelRequest -> ModelSource: a scheme such as timm:NAME, a file or code; or the checkpoint of a run
find_model    source, images, evaluations and threat model -> Model
Model.load    images and device -> LoadedModel: the network behind its normalization
"""
