"""A detection recipe that trains in seconds."""

TINY_DETECTION = """
name: tiny_detection
encoder: {name: torchvision, model: resnet18, widen: 0.25}
detector: {name: rcnn_fpn, masks: true, width: 16, head: 32, candidates: 200, proposals: 40, regions: 32,
           score_threshold: 0.01}
data:
  train: {name: coco_detection, images: ROOT/images, annotations: ROOT/instances.json, masks: true}
  validation: {name: coco_detection, images: ROOT/images, annotations: ROOT/instances.json, masks: true}
  sizes: [48, 56, 64]
  size: 64
  max_size: 96
loader: {batch: 3}
optimizer: {name: adam, lr: 2e-3}
schedule: {name: constant, warmup_steps: 2}
training: {steps: 6, precision: fp32, log_every: 1, clip: 10.0}
evaluation: {rules: [coco, voc]}
"""
