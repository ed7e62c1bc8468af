"""Stands in for sgm.util."""

import importlib


def get_obj_from_str(target):
    module, name = target.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def instantiate_from_config(config):
    return get_obj_from_str(config["target"])(**config.get("params", {}))
