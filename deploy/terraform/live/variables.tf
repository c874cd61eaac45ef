variable "environment" {
  type = string

  validation {
    condition     = contains(["dev", "staging", "prod"], var.environment)
    error_message = "One of dev, staging, prod."
  }
}

variable "region" {
  type = string
}

# As in ../gateway, which checks them.

variable "image" {
  type = string
}

variable "vpc_id" {
  type = string
}

variable "subnets" {
  type = map(string)
}

variable "balancer_networks" {
  type = list(string)
}

variable "client_security_groups" {
  type = map(string)
}

variable "certificate_arn" {
  type = string
}

variable "secrets" {
  type = map(string)
}

variable "settings" {
  type = map(string)
}

variable "replicas" {
  type = object({ min = number, max = number })
}

variable "database" {
  type = object({ class = string, storage_gib = number, backup_days = number })
}

variable "cache" {
  type = object({ node_type = string, user_group_id = string })
}

variable "protected" {
  type    = bool
  default = true
}
