# What `docker buildx bake TARGET` can build; `docker buildx bake --print TARGET` shows with what.
# Any argument of the Dockerfile can be added: --set '*.args.CONTROLNET=on'.

variable "IMAGE" {
  default = "a1111-worker"
}

variable "VERSION" {
  default = "0.1.0"
}

group "default" {
  targets = ["deliberate"]
}

target "_common" {
  context    = "."
  dockerfile = "Dockerfile"
  platforms  = ["linux/amd64"]
}

# Blackwell cards (RTX 5090, B200) know CUDA 12.8 and newer only. The date is that of the wheels.
target "_cuda-12-8" {
  args = {
    TORCH                 = "2.8.0"
    TORCHVISION           = "0.23.0"
    XFORMERS              = "0.0.32.post2"
    WEBUI_PACKAGES_BEFORE = "2025-09-01"
  }
}

# torch and xformers as Forge's own launcher has them.
target "_forge" {
  args = {
    WEBUI_KIND  = "forge"
    TORCH       = "2.3.1"
    TORCHVISION = "0.18.1"
    XFORMERS    = "0.0.27"
  }
}

# No checkpoint: models come from the network volume, or are fetched.
target "slim" {
  inherits = ["_common"]
  target   = "slim"
  tags     = ["${IMAGE}:${VERSION}-slim"]
}

# With Deliberate v6. For another one set CHECKPOINT_URL, CHECKPOINT_NAME and CHECKPOINT_SHA256.
target "deliberate" {
  inherits = ["_common"]
  target   = "baked"
  tags     = ["${IMAGE}:${VERSION}"]
}

# The same with ControlNet, ADetailer and ReActor.
target "extensions" {
  inherits = ["deliberate"]
  args = {
    CONTROLNET = "on"
    ADETAILER  = "on"
    REACTOR    = "on"
  }
  tags = ["${IMAGE}:${VERSION}-extensions"]
}

target "slim-cuda-12-8" {
  inherits = ["slim", "_cuda-12-8"]
  tags     = ["${IMAGE}:${VERSION}-slim-cuda-12-8"]
}

target "deliberate-cuda-12-8" {
  inherits = ["deliberate", "_cuda-12-8"]
  tags     = ["${IMAGE}:${VERSION}-cuda-12-8"]
}

target "forge" {
  inherits = ["slim", "_forge"]
  tags     = ["${IMAGE}:${VERSION}-forge"]
}

target "forge-cuda-12-8" {
  inherits = ["slim", "_forge", "_cuda-12-8"]
  tags     = ["${IMAGE}:${VERSION}-forge-cuda-12-8"]
}
