# The secret store. Terraform makes the places and says who may read them; it never sees what is put in
# (`aws secretsmanager put-secret-value --secret-id wootz-prod/openai --secret-string file:///dev/stdin`).

resource "aws_kms_key" "this" {
  description             = "${var.name}: secrets, database, cache"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

resource "aws_secretsmanager_secret" "this" {
  for_each = var.secrets

  name                    = "${var.name}/${each.key}"
  description             = each.value
  kms_key_id              = aws_kms_key.this.arn
  recovery_window_in_days = 7

  tags = { rotate_every_days = "90" }
}

# Reading needs both: the value, and the key that it is encrypted with. With the first alone the gateway would start and
# then fail; Wootz reads every secret at start and names what is not permitted.
data "aws_iam_policy_document" "read_secrets" {
  statement {
    sid       = "Values"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [for secret in aws_secretsmanager_secret.this : secret.arn]
  }

  statement {
    sid       = "Decrypt"
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.this.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:EncryptionContext:SecretARN"
      values   = [for secret in aws_secretsmanager_secret.this : secret.arn]
    }
  }
}

data "aws_iam_policy_document" "tasks_may_assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ecs-tasks.amazonaws.com"]
    }
  }
}

# The gateway's identity. Its credentials come from the metadata service and last for hours; none is stored anywhere.
resource "aws_iam_role" "task" {
  name               = "${var.name}-task"
  assume_role_policy = data.aws_iam_policy_document.tasks_may_assume.json
}

resource "aws_iam_role_policy" "read_secrets" {
  name   = "read-secrets"
  role   = aws_iam_role.task.id
  policy = data.aws_iam_policy_document.read_secrets.json
}
